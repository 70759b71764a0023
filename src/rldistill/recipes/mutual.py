"""Recipes in which several students learn together, from data or from reward, and from each other."""

from typing import Annotated, Any

from annotated_types import Ge, Le

from rldistill.collection.collect import collected_spec
from rldistill.core.errors import ConfigError
from rldistill.core.fields import NonNegativeFloat, validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.core.schedules import Constant, PositiveSchedule
from rldistill.core.spec import PolicySpec
from rldistill.distillation.distill import distill, require_fit
from rldistill.distillation.mutual import Peers, require_gradient
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import FromReward
from rldistill.recipes.job import Run, StudentJob
from rldistill.recipes.offline import FromDataset
from rldistill.rl import ppo
from rldistill.rl.guidance import Guidance
from rldistill.rl.mutual import learn_together, peer_guidance
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent
from rldistill.students.features.teacher import TeacherFeatures
from rldistill.students.student import capability

MAX_PEERS = 64


@validated_dataclass
class WithPeers:
    """Base class of recipes with peers.

    Attributes:
        peers: number of other students that learn together with each student, with other initial weights.
        peer: settings of these; by default those of the student.
    """

    peers: Annotated[int, Ge(1), Le(MAX_PEERS)] = 1
    peer: AnyStudent | None = None

    def __post_init__(self) -> None:
        features = getattr(self.peer, "features", None)
        if isinstance(features, TeacherFeatures) and features.source is None:
            raise ConfigError("peer: it cannot take features of another network. Use other features, or leave it out.")

    def peers_of(self, student: AnyStudent) -> tuple[AnyStudent, ...]:
        """Return the settings of the peers of a student."""
        return (student if self.peer is None else self.peer,) * self.peers


@validated_dataclass
class Mutual(WithPeers, FromDataset):
    """Deep mutual learning (Zhang 2018, arXiv 1706.00384): students learn from the teacher's data and each other.

    The loss of student k of K is that of `distill` and weight / (K - 1) sum_{l != k} KL(l || k). The result is the one
    with the lowest held-out loss, of those that have the settings of the student.

    Attributes:
        weight: weight of the mutual term, over the course of training.
    """

    weight: PositiveSchedule = Constant(1.0)

    def group(self, student: AnyStudent) -> Peers:
        """Return the peers of a student."""
        return Peers(self.peers_of(student), self.weight)

    def check(self, run: Run, teacher: Policy) -> None:
        spec = collected_spec(run.env, teacher)
        for student in run.students.values():
            self.group(student).require(student)
            require_fit(self.peer or student, run.distill, spec)
        super().check(run, teacher)

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        job.open(mode)
        return distill(
            job.data, job.student, job.run.distill, job.folder, seed=job.seed, mode="resume", progress=progress,
            peers=self.group(job.student),
        )  # fmt: skip


@validated_dataclass
class MutualPPO(WithPeers, FromReward):
    """Dual policy distillation (Lai 2020, arXiv 2006.04061): students learn by PPO and from each other.

    No teacher takes part. Students share `ppo.total_steps`. The loss of a student is that of PPO and
    weight E_s[exp(alpha (V_peer(s) - V(s)) / std V) KL(peer || student)]: it is drawn to the peer where that expects a
    larger return. In each state the peer is that with the largest value. The result is the student with the best
    validation score, of those that have its settings.

    Attributes:
        weight: weight of the mutual term, over the course of training.
        alpha: exponent of the confidence in the peer; 0 for the same weight in all states.
    """

    weight: PositiveSchedule = Constant(0.1)
    alpha: NonNegativeFloat = 1.0

    needs_teacher = False

    def guidance_options(self, run: Run) -> dict[str, Any]:
        return {}  # `distill.losses` compare with the teacher, which may have no distribution

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        for where, own in (("students", student), ("recipe.peer", self.peer or student)):
            require_gradient(own, where)
            if capability(own, "recurrent"):
                raise ConfigError(f"{where}: recurrent students do not learn from peers. Use a feed-forward student.")
            head = ppo.new_policy(own, spec, teacher.spec.head, ()).spec.head
        return head

    def guidance(self, run: Run, teacher: Policy) -> Guidance:
        super().guidance(run, teacher)
        return peer_guidance(self.weight, self.alpha)

    def learn(self, job: StudentJob, task: LearningTask, mode: Mode, progress: Progress) -> NetworkPolicy:
        students = [job.student, *self.peers_of(job.student)]
        return learn_together(task, students, job.run.ppo, mode="resume", progress=progress)
