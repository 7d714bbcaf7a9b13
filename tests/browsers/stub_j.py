"""TEMPORARY, until the middleware has `client_path`."""
from wattfare_mw.cli import demo_chat
from wattfare_mw.middleware.options import Options
if "client_path" not in Options.__annotations__:
    made = demo_chat.Chat.options
    demo_chat.Chat.options = lambda self: {k: v for k, v in made(self).items() if k not in ("client_path", "account_label")}
    from browsers import site
    real = site.flask_app
    def flask_app(chat):
        app = real(chat)
        app.add_url_rule("/api/wattfare/wattfare-return", "stub", lambda: "<!doctype html><html lang=en><link rel=icon href=data:,><title>x</title>back")
        return app
    site.flask_app = flask_app
