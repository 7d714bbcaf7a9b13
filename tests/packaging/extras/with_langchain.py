"""A chat model of LangChain that a user pays for."""

from fake_service import fake_service

from wattfare_mw import Wattfare
from wattfare_mw.integrations.langchain import ChatWattfare

with fake_service(), Wattfare() as wf:
    chat = ChatWattfare(user=wf.user("ann"), model="wattfare/echo")
    assert chat.invoke("Say hello.").text == "Hello."
