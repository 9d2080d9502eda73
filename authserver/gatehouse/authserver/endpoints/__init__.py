"""One file per endpoint, named as its RFC names it. Each is a function from a request to a response."""
