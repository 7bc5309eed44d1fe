"""HTML reports and charts of the lab."""
