"""instructor, billed to a user.

python examples/libraries/instructor_create.py
"""

import os
from urllib.parse import quote

import instructor
import openai
from pydantic import BaseModel


class City(BaseModel):
    name: str


client = instructor.from_openai(
    openai.OpenAI(
        base_url=os.environ["WATTFARE_BASE_URL"] + "/api/v1",
        api_key=os.environ["WATTFARE_SECRET_KEY"],
        default_headers={"X-Wattfare-User": quote("user_123")},
    ),
    mode=instructor.Mode.JSON,
)
city, completion = client.create_with_completion(
    model="wattfare/echo",
    messages=[{"role": "user", "content": '{"name": "Paris"}'}],
    response_model=City,
    max_retries=0,
)
print(city.name)
print(f"{completion.usage.total_tokens} tokens, {completion.usage.cost:.6f} USD")
