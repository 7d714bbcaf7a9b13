"""A service in an app's own tests."""

from wattfare_mw.testing import WattfareService

with WattfareService() as wattfare:
    ann = wattfare.user("ann").connect(5)
    wattfare.reply("Hello.")
    model = wattfare.client().user("ann").model("wattfare/echo")
    assert model.generate("Say hello.").text == "Hello."
    assert ann.billed > 0
