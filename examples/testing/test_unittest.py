"""Tests of an app, with unittest alone. Run them: python examples/testing/test_unittest.py"""

from __future__ import annotations

import unittest
from decimal import Decimal

from wattfare_mw import Wattfare, is_budget_exceeded
from wattfare_mw.testing import WattfareService


class BudgetTest(unittest.TestCase):
    def test_new_month_resets_the_budget(self) -> None:
        with WattfareService() as wattfare, Wattfare() as wf:
            ann = wattfare.user("ann").connect("0.01")
            ann.spend_to(left=0)
            model = wf.user("ann").model("openai/gpt-5")

            with self.assertRaises(Exception) as refused:
                model.generate("How is Ann today?")
            self.assertTrue(is_budget_exceeded(refused.exception))

            wattfare.clock.advance(days=31)
            model.generate("How is Ann today?")
            self.assertEqual(ann.status().usage.monthly_usd, Decimal("0.000012"))


if __name__ == "__main__":
    unittest.main()
