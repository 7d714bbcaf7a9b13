"""The token route alone, in any framework.

python examples/token_route_anywhere.py
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wattfare_mw import Request, Wattfare

wf = Wattfare()
answer = wf.session_handler(
    lambda request: request.headers.get("x-signed-in-user"),  # set by a proxy that signs users in
    request_limit=20,
)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        response = answer(Request("POST", self.path, dict(self.headers)))
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
