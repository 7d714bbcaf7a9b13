"""A structured answer by instructor, billed to a user.

python examples/libraries/instructor_create.py
"""

import instructor
from pydantic import BaseModel

from wattfare_mw import Wattfare


class City(BaseModel):
    name: str


user = Wattfare().user("user_123")
client = instructor.from_openai(user.openai(), mode=instructor.Mode.JSON)
city, completion = client.create_with_completion(
    model="wattfare/echo",
    messages=[{"role": "user", "content": '{"name": "Paris"}'}],
    response_model=City,
    max_retries=0,
)
print(city.name)
print(f"{completion.usage.total_tokens} tokens, {completion.usage.cost:.6f} USD")
