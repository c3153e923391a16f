"""HTTP/1.1 on the node's own event loop: connections, requests, answers. Speaks ASGI to the application."""
