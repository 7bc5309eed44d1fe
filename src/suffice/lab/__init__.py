"""Offline work with recorded or collected outcomes. Needs the extra `lab`.

    table -> split -> fit -> calibrate -> evaluate -> report + artifact

Serving never imports this package.
"""
