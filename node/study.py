"""A study: the TOML file that says what is learnt, by which rules. Everyone signs it.

study = read_study(Path("study.toml"))
study.rounds, study.task.options, study.aggregation.clip
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from keys.errors import WardtreeError
from keys.manifest import TWO_PARTIES
from keys.plan import MAX_SEGMENT_CIPHERTEXTS, Plan, PlanError
from keys.planner import choose
from node.compression.settings import CompressionSettings
from node.evaluation import Layout, Selection
from node.optimiser import Optimiser, RateSchedule, Server
from node.privacy.settings import PrivacySettings, Surroundings, conflicts
from node.protocol.schedule import Schedule
from node.settings import Settings, printable, problems
from node.tasks.base import EvaluationSpec, OptionsError, Task
from node.tasks.loader import BUILTIN, CODE, load_task_class
from topology import Shape


class StudyError(WardtreeError):
    """A study cannot be used; the text lists every problem, one a line."""


class Heading(Settings):
    """``[study]``."""

    name: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,80}$", description="a name of 1 to 80 characters on one line")
    rounds: int = Field(ge=1, le=10_000, description="a whole number from 1 to 10000")
    # The upper end is what scikit-learn and torch take alike.
    seed: int = Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")


class TaskChoice(Settings):
    """``[task]``: ``class_name`` is ``class`` in the file; ``options`` are checked by the task itself."""

    class_name: str = Field(
        alias="class",
        pattern=rf"^({'|'.join(BUILTIN)}|{CODE})$",
        description=", ".join(f'"{name}"' for name in BUILTIN) + ' or "module:Class"',
    )
    options: dict[str, Any] = Field(default_factory=dict, description="a table")


class Aggregation(Settings):
    """``[aggregation]``: how updates are weighted, clipped, counted and hidden."""

    weights: Literal["examples", "equal"] = Field(default="equal", description='"examples" or "equal"')
    clip: float = Field(default=1.0, gt=0, description="a number above 0")
    value_bits: int = Field(default=14, ge=4, le=24, description="a whole number from 4 to 24")
    max_parties: int = Field(default=64, ge=2, le=1024, description="a whole number from 2 to 1024")
    min_hidden: int = Field(default=2, ge=2, description="a whole number of at least 2")
    allow_two_parties: bool = Field(default=False, description="true or false")
    tree: Shape = Field(default="balanced", description='"balanced" or "chain"')
    segment_ciphertexts: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SEGMENT_CIPHERTEXTS,
        description=f"a whole number from 1 to {MAX_SEGMENT_CIPHERTEXTS}",
    )
    max_openings: int = Field(default=100_000, ge=1, description="a whole number of at least 1")
    sample: float = Field(default=1.0, gt=0, le=1, description="a number above 0, at most 1")

    @model_validator(mode="after")
    def _someone_to_hide_among(self) -> "Aggregation":
        if self.min_hidden >= self.max_parties:
            raise ValueError(f"expected min_hidden below max_parties, came {self.min_hidden} and {self.max_parties}")
        return self

    @model_validator(mode="after")
    def _exact(self) -> "Aggregation":
        try:
            choose(self.max_parties, self.value_bits)
        except PlanError as error:
            raise ValueError(str(error)) from None
        return self


class Optimisation(Settings):
    """``[optimisation]``: how the mean update moves the model, and the course of the hospitals' learning rate."""

    server: Server = Field(default="average", description='"average", "momentum", "adam" or "yogi"')
    learning_rate: float = Field(default=1.0, gt=0, description="a number above 0")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="a number from 0 to below 1")
    second_moment: float = Field(default=0.99, ge=0, lt=1, description="a number from 0 to below 1")
    adaptivity: float = Field(default=1e-3, gt=0, description="a number above 0")
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant", description='"constant", "cosine" or "step"'
    )
    warmup_rounds: int = Field(default=0, ge=0, description="a whole number of rounds")
    step_rounds: int = Field(default=10, ge=1, description="a whole number of rounds above 0")
    step_factor: float = Field(default=0.5, gt=0, le=1, description="a number above 0, at most 1")

    @property
    def optimiser(self) -> Optimiser:
        return Optimiser(self.server, self.learning_rate, self.momentum, self.second_moment, self.adaptivity)

    @property
    def rates(self) -> RateSchedule:
        return RateSchedule(self.schedule, self.warmup_rounds, self.step_rounds, self.step_factor)


class EvaluationChoice(Settings):
    """``[evaluation]``: whether all together evaluate the model, how often, and what follows from it."""

    every: int = Field(default=0, ge=0, description="a whole number of training rounds; 0: never")
    bins: int = Field(default=100, ge=2, le=1000, multiple_of=2, description="an even whole number from 2 to 1000")
    max_examples: int = Field(default=1_000_000, ge=1, le=10**9, description="a whole number above 0")
    measure: str | None = Field(default=None, min_length=1, description="the name of a figure")
    better: Literal["higher", "lower"] = Field(default="higher", description='"higher" or "lower"')
    stop_after: int = Field(default=0, ge=0, description="a whole number of evaluations; 0: never")
    least_gain: float = Field(default=0.0, ge=0, description="a number of at least 0")
    allow_near_sets: bool = Field(default=False, description="true or false")

    def selection(self, names: Sequence[str]) -> Selection:
        """By the measure that was chosen, else by the AUC, else by the first of the figures ``names``."""
        measure = self.measure or ("auc" if "auc" in names else (*names, "", "")[1])
        return Selection(measure, self.better, self.stop_after, self.least_gain)

    def layout(self, spec: EvaluationSpec | None, plan: Plan) -> Layout | None:
        """How a task's counts travel; None where nothing is evaluated. Raises StudyError."""
        if not self.every:
            return None
        if spec is None:
            raise StudyError("evaluation.every: this task has no evaluation_spec(), and cannot be evaluated together")
        layout = Layout(spec, self.bins, self.max_examples, plan.max_value)
        if self.measure not in (None, *layout.names[1:]):
            raise StudyError(f"evaluation.measure: expected one of {', '.join(layout.names[1:])}, came {self.measure}")
        return layout


class Deadlines(Settings):
    """``[deadlines]``, in seconds."""

    round_seconds: float = Field(default=120.0, gt=0, description="a number of seconds above 0")
    join_seconds: float = Field(default=60.0, gt=0, description="a number of seconds above 0")


class Sandbox(Settings):
    """``[sandbox]``: gaps that are only advised against, and that no node of this study may have."""

    demand: list[Literal["core-pattern", "hibernation", "init-on-free", "ptrace", "swap"]] = Field(
        default_factory=list, description='a list of "core-pattern", "hibernation", "init-on-free", "ptrace", "swap"'
    )


class Debug(Settings):
    """``[debug]``: ``check_sums`` lets ``wardtree local`` compare each opened total with a linear check;
    ``two_parties`` lets two parties take part in an experiment in which each learns the other's update."""

    check_sums: bool = Field(default=False, description="true or false")
    two_parties: bool = Field(default=False, description="true or false")

    @property
    def names(self) -> list[str]:
        """What of it is on, as the manifest names it."""
        return [name for name, on in (("check-sums", self.check_sums), (TWO_PARTIES, self.two_parties)) if on]


class Study(Settings):
    """The whole file, checked."""

    study: Heading = Field(description="a table")
    task: TaskChoice = Field(description="a table")
    aggregation: Aggregation = Field(default_factory=Aggregation, description="a table")
    optimisation: Optimisation = Field(default_factory=Optimisation, description="a table")
    evaluation: EvaluationChoice = Field(default_factory=EvaluationChoice, description="a table")
    privacy: PrivacySettings = Field(default_factory=PrivacySettings, description="a table")
    compression: CompressionSettings = Field(default_factory=CompressionSettings, description="a table")
    deadlines: Deadlines = Field(default_factory=Deadlines, description="a table")
    sandbox: Sandbox = Field(default_factory=Sandbox, description="a table")
    debug: Debug = Field(default_factory=Debug, description="a table")

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def rounds(self) -> int:
        return self.study.rounds

    @property
    def seed(self) -> int:
        return self.study.seed

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.rounds, self.evaluation.every, self.compression.mask == "energy")

    def conflicts(self, statistics: bool = False) -> list[str]:
        """What in one table does not go with another, one line each; ``statistics``: whether the task has a round of
        them."""
        found = []
        if self.compression.is_sparse and self.optimisation.server != "average":
            found.append(
                f'optimisation.server: expected "average" with a mask, came "{self.optimisation.server}": the moments '
                "of a value that was not sent would go stale"
            )
        if self.aggregation.allow_two_parties and not self.privacy.is_private:
            found.append(
                "aggregation.allow_two_parties: expected false without [privacy], came true: of two parties each "
                "learns the other's update by subtraction"
            )
        rules = self.aggregation
        around = Surroundings(
            rules.weights,
            self.rounds,
            rules.value_bits,
            rules.min_hidden,
            statistics,
            self.evaluation.every > 0,
            self.compression.mask == "energy",
        )
        return found + conflicts(self.privacy, around)


def parse_study(text: str, source: str) -> Study:
    """The study in ``text``; ``source`` names it in messages. Raises StudyError.

    The options of a built-in task are checked as well. A user's module is not imported:
    see ``check_options``.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{source}: expected TOML, came a syntax error: {error}") from None
    try:
        study = Study.model_validate(table)
    except ValidationError as error:
        raise StudyError(_lines(source, problems(Study, error))) from None
    if lines := study.conflicts():
        raise StudyError(_lines(source, lines))
    if study.task.class_name in BUILTIN:
        check_options(study, source)
    return study


def read_study(path: Path) -> Study:
    """The study in the file ``path``. Raises StudyError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path}: expected a study file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path}: expected a study file in UTF-8, came other bytes") from None
    return parse_study(text, str(path))


def check_options(study: Study, source: str) -> None:
    """Let the task check its own options; imports, and so runs, the task's module.

    Raises StudyError for wrong options, TaskError where the task cannot be loaded.
    """
    task = load_task_class(study.task.class_name)
    try:
        task.check_options(study.task.options)
    except OptionsError as error:
        raise StudyError(_lines(source, [f"task.options.{line}" for line in error.problems])) from None
    has_statistics = getattr(task, "has_statistics", Task.has_statistics)  # a task need not inherit
    lines = study.conflicts(bool(has_statistics(study.task.options)))
    if study.privacy.mode == "record" and not getattr(task, "trains_privately", False):
        lines.append(f'privacy.mode: the task {study.task.class_name} cannot train with privacy.mode = "record"')
    if lines:
        raise StudyError(_lines(source, lines))


def new_study_text() -> str:
    """A commented study to start from."""
    return _NEW_STUDY


def _lines(source: str, problems: list[str]) -> str:
    return "\n".join(f"{source}: {printable(problem)}" for problem in problems)


_NEW_STUDY = """\
# A wardtree study. Every hospital reads this file and signs it: it decides what is done with their data.

[study]
name = "my-study"
rounds = 10            # training rounds, 1 to 10000
seed = 1               # for the split into training and held-out patients

[task]
class = "tabular"      # logistic regression; or "image", "synthetic", or a class of your own: "module:Class"

[task.options]
# The outcome: ill where the column's number is above `positive_above` ...
target = { column = "outcome", positive_above = 0 }
# ... or where it holds one of some words:
# target = { column = "outcome", positive = ["yes"] }
test_fraction = 0.3    # held out: never used in training or statistics
learning_rate = 0.05
local_epochs = 5       # passes over a hospital's own training patients in each round
batch_size = 32
l2 = 0.001
proximal = 0.0         # FedProx: how strongly a hospital's own training is drawn to the global model
max_examples = 1000    # no hospital may have more patients than this

[task.options.features]
# A number with its plausible range (what lies outside counts as missing), or a category with its levels.
age = { range = [18, 100] }
sex = { levels = ["Female", "Male"] }

[aggregation]
weights = "examples"   # by the public, rounded number of patients; or "equal"
clip = 1.0             # each value of an update is clipped to [-clip, clip]
value_bits = 14        # precision of an encrypted value, 4 to 24: `wardtree plan` tells what it costs
max_parties = 64
min_hidden = 2         # every hospital hides among at least this many others
allow_two_parties = false
tree = "balanced"      # or "chain": every inner node below another, each with one leaf; for lines, and to measure
# segment_ciphertexts = 4    # ciphertexts that travel together; left away, the planner's choice
max_openings = 100000  # segments that may ever be opened with one key; then a new manifest is needed
sample = 1.0           # the share of the hospitals that train in a round, drawn anew for each

[optimisation]
server = "average"     # or "momentum", "adam", "yogi": how the mean update moves the model (Reddi et al. 2021)
learning_rate = 1.0    # of that step; momentum, second_moment and adaptivity are beta 1, beta 2 and tau
schedule = "constant"  # of the hospitals' own learning rate: or "cosine", or "step" (step_rounds, step_factor)
warmup_rounds = 0

[evaluation]
every = 0              # after so many training rounds all held-out patients are counted, and summed encrypted; 0: never
measure = "auc"        # what says which model was the best; `better = "lower"` for a loss
stop_after = 0         # evaluations without a gain after which the study ends; 0: it runs all its rounds
# Two evaluations over sets of hospitals that differ by few tell of those few; such a round is left out, unless
allow_near_sets = false

[privacy]
mode = "none"          # or "record" (a patient is hidden), "hospital" (a hospital is): docs/privacy.md
# epsilon = 8.0        # of the whole study
# delta = 1e-5
# clip = 1.0           # "record": of one patient's gradient; "hospital": of a hospital's update, an L2 norm
# values = 100000      # "hospital": the most values that a round may sum; noise takes room in the key

[compression]
mask = "none"          # or "cyclic", "random", "top", "energy": which values of an update a round sends
# density = 0.05       # the part of them; what is not sent waits for a later round (feedback = true)

[deadlines]
round_seconds = 120.0
join_seconds = 60.0

[sandbox]
demand = []            # beyond what every node must have: that no node has "swap", say; `wardtree doctor` lists more

[debug]
check_sums = false     # true: `wardtree local` checks that every opened total is exact
"""
