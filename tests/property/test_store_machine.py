"""Random lives of a store against a model. The torture stage `machine` goes on with them by the hour."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.property.store_machine import StoreMachine

TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=50, stateful_step_count=40, suppress_health_check=list(HealthCheck), print_blob=True
)
