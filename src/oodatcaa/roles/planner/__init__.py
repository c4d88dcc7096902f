"""The built-in planner: facts in, a validated plan out; pure and deterministic.

`plan_story` makes a story's first plan (or a new one from scratch), `adapted_plan` the next version
after a failure. Everything they know is in `PlanInputs`; the caller gathers it.
"""

from oodatcaa.roles.planner.assemble import adapted_plan, plan_story
from oodatcaa.roles.planner.inputs import ParamOption, PlanInputs
from oodatcaa.roles.planner.parameters import fitted_length, options_for, planned_params
from oodatcaa.roles.planner.subtasks import keepable

__all__ = [
    "ParamOption",
    "PlanInputs",
    "adapted_plan",
    "fitted_length",
    "keepable",
    "options_for",
    "plan_story",
    "planned_params",
]
