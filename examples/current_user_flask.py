"""A Flask app with one global openai client, which bills the user of each request.

flask --app examples/current_user_flask run
"""

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from flask import Flask, request, session
from wattfare_flask import WattfareMiddleware

from wattfare_mw import current_user

app = Flask(__name__)
app.secret_key = secrets.token_bytes()
WattfareMiddleware(app, resolve_user=lambda request: session.get("user_id"), current_user=True)

client = current_user.openai()
pool = ThreadPoolExecutor()


def ask(text: str) -> str | None:
    answer = client.chat.completions.create(
        model="wattfare/echo", messages=[{"role": "user", "content": text}]
    )
    return answer.choices[0].message.content


@app.post("/ask")
def ask_one() -> dict[str, str | None]:
    return {"answer": ask(request.get_json()["text"])}


@app.post("/ask-each")
def ask_each() -> dict[str, list[str | None]]:
    texts: list[str] = request.get_json()["texts"]
    jobs = [pool.submit(copy_context().run, ask, text) for text in texts]
    return {"answers": [job.result() for job in jobs]}


@app.post("/sign-in/<name>")
def sign_in(name: str) -> tuple[str, int]:
    # In a real app, check a password first.
    session["user_id"] = name
    return "", 204
