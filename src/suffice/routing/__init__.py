"""The request path between the gateway and the engine: routes, selection, response, records."""
