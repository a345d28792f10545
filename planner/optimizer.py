"""The optimizer: batches of rules over a logical plan, each run once or to a fixed point.

The shape is Catalyst's (Armbrust et al., Spark SQL, SIGMOD 2015): rules are pure functions, batches
order them, and everything a rule did or refused to do is kept for `explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import ParameterError, did_you_mean
from ..ops.node import Node
from ..ops.persist import Persist
from . import spec
from .options import PlanOptions
from .persisting import agree, seal_persisted
from .plan import RuleEvent
from .rewrite import Roots, Rule, intern, same
from .rules.column_pruning import column_pruning
from .rules.common_subplans import common_subplans
from .rules.constant_folding import constant_folding
from .rules.limit_pushdown import limit_pushdown
from .rules.merge_filters import merge_filters
from .rules.merge_projections import merge_projections
from .rules.outer_join_elimination import outer_join_elimination
from .rules.predicate_pushdown import predicate_pushdown
from .rules.redundant_operators import redundant_operators
from .rules.sort_elimination import sort_elimination
from .rules.top_k import top_k
from .sealing import Sealed, seal, unseal

#: most rounds of a batch that runs to a fixed point
MAX_ROUNDS = 8

#: called after every batch with its name, the plan before it and the plan after it
Check = Callable[[str, Roots, Roots], None]


@dataclass(frozen=True)
class Batch:
    """Rules that run in order; once, or round after round until nothing changes."""

    name: str
    rules: tuple[Rule, ...]
    to_fixed_point: bool = False


SIMPLIFY = Batch(
    "simplify", (constant_folding, redundant_operators, merge_projections, merge_filters), to_fixed_point=True
)
PUSH_DOWN = Batch(
    "push down",
    (predicate_pushdown, outer_join_elimination, limit_pushdown, top_k, sort_elimination),
    to_fixed_point=True,
)
TIDY = Batch("tidy", (constant_folding, redundant_operators, merge_projections), to_fixed_point=True)
COLUMNS = Batch("columns", (column_pruning, redundant_operators, merge_projections), to_fixed_point=True)
SHARE = Batch("share", (common_subplans,))

#: rules that decide how a stage is made, in planner/lowering.py
PHYSICAL_RULES = (
    "broadcast_join",
    "exchange_elimination",
    "key_sampling",
    "read_types",
    "map_side_combine",
    "split_pruning",
)

RULE_NAMES = tuple(
    dict.fromkeys(rule.__name__ for b in (SIMPLIFY, PUSH_DOWN, TIDY, COLUMNS, SHARE) for rule in b.rules)
)


def optimize(
    roots: Mapping[str, Node], options: PlanOptions, check: Check | None = None
) -> tuple[dict[str, Node], tuple[RuleEvent, ...]]:
    """Rewrite a logical plan into one that gives the same rows for less work.

    Args:
        roots: output name to node.
        options: ``disabled_rules`` names the rules to leave out.
        check: called after every batch, by tests; a root's schema is checked in any case.

    Returns:
        The rewritten roots, and what each rule did or refused to do, and why.

    Raises:
        ParameterError: ``options.disabled_rules`` names an unknown rule.
        PlanError: a rule broke the plan: a defect of Headwater.

    Example:
        >>> optimize({}, PlanOptions())
        ({}, ())
    """
    known = RULE_NAMES + PHYSICAL_RULES
    if unknown := sorted(options.disabled_rules - set(known)):
        raise ParameterError(
            f"disabled_rules: there is no rule {unknown[0]!r}. {did_you_mean(unknown[0], known)}"
        )
    run = _Run(options.disabled_rules, check)
    start = run.intern(agree(roots))
    plan = seal_persisted(start, run.seal)
    plan = run.batches(agree(unseal(run.main(plan))), SHARE)
    spec.check_schemas(start, plan)
    return dict(plan), tuple(run.events)


class _Run:
    """One optimization: nodes made one by key, and the events so far, each once."""

    def __init__(self, disabled: frozenset[str], check: Check | None):
        self.disabled = disabled
        self.check = check
        self.events: dict[RuleEvent, None] = {}
        self.nodes: dict[str, Node] = {}

    def intern(self, roots: Roots) -> dict[str, Node]:
        return intern(roots, self.nodes)

    def main(self, roots: Roots) -> dict[str, Node]:
        """Run all batches up to the last over a plan; what has to stay as it is stays sealed."""
        plan: Roots
        plan = seal(roots, lambda node: self.batches({"": node}, SIMPLIFY, PUSH_DOWN, TIDY, COLUMNS)[""])
        plan = self.batches(plan, SIMPLIFY, PUSH_DOWN, TIDY)
        return self.batches(unseal(plan, only_narrow=True), COLUMNS)

    def seal(self, node: Persist) -> Sealed:
        """Optimize what is persisted as if it were the whole plan."""
        return Sealed(Persist(self.main({"": node.input})[""], node.level, node.replicas))

    def batches(self, roots: Roots, *batches: Batch) -> dict[str, Node]:
        for batch in batches:
            before, roots = roots, self.batch(roots, batch)
            if self.check is not None:
                self.check(batch.name, before, roots)
        return dict(roots)

    def batch(self, roots: Roots, batch: Batch) -> Roots:
        for round in range(MAX_ROUNDS if batch.to_fixed_point else 1):
            before, roots = roots, self.round(roots, batch, first=round == 0)
            if same(before, roots):
                break
        return roots

    def round(self, roots: Roots, batch: Batch, first: bool) -> Roots:
        """Run each rule once. Refusals count in the first round only; later ones repeat them."""
        for rule in batch.rules:
            if rule.__name__ in self.disabled:
                continue
            roots, events = rule(roots)
            self.events.update((event, None) for event in events if first or event.fired)
        return self.intern(roots)
