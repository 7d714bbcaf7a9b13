"""The service's pages for people: HTML from the server, which works without JavaScript."""
