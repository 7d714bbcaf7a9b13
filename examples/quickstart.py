"""The app of the README. `wattfare dev` gives its only user, ann, a budget of $5 a month.

flask --app examples/quickstart run
"""

from flask import Flask
from wattfare_flask import WattfareMiddleware

app = Flask(__name__)
WattfareMiddleware(app, resolve_user=lambda request: "ann", request_limit=20)
