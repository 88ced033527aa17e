"""Train a model to classify clips: the plain loop of the `finetune` stage.

How a training runs, is killed, and goes on is in `training.py`.
What a step learns from its batch, also along several chains at once or from a teacher, is in
`branches.py`.

Legend: B clips, K classes, C T H W video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from workloads import augment, clips, load, optim
from workloads.branches import Branch, Branches, Distil, Teacher, teacher_of
from workloads.clips import ClipSet, Grids
from workloads.knobs import Float
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import base
from workloads.stage import Input, Inputs, Report, Result
from workloads.training import Trainer
from workloads.vit import VideoTransformer, is_added

REVISION = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the trained weights."""

    model: HostConfig
    """The host; its weights are random, or those of the stage that it reads as `weights`."""
    clip: clips.Config
    """What it sees of a video."""
    grids: Grids = field(default_factory=Grids)
    """Lengths and sides of which each batch draws its own instead; a clip spans the same time."""
    reducers: tuple[base.Config, ...] = ()
    """Chain to train with; () is dense."""
    branches: tuple[Branch, ...] = ()
    """Chains to train with in each step, each for a head; () is one, `reducers` for head 0."""
    align: Annotated[float, Float(1.0, 1000.0, log=True, stage="finetune")] = 1.0
    """Weight of what the first branch teaches the others; 0 = none. The official 1 is nearly inert,
    about the width of the features weighs like a cross-entropy (see `losses`)."""
    distil: Distil = field(default_factory=Distil)
    """What a frozen model, read as `teacher`, teaches all branches."""
    augment: augment.Config = field(default_factory=augment.Config)
    optim: optim.Config = field(default_factory=optim.Config)
    steps: int = 1000
    """Batches to train on."""
    batch: int = 32
    """Clips of a step, over all ranks."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    train: Literal["all", "added"] = "all"
    """All weights, or only those that come on top of an image backbone (`vit.added`)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights stay float32."""
    seed: int = 0
    """Of weights, order, augmentation and random reducers."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise Mistake(f"finetune: steps={self.steps}, batch={self.batch} must be 1 or more")
        if self.align < 0:
            raise Mistake(f"finetune: align={self.align} must be 0 or more", "it is a weight")
        if self.branches and self.reducers:
            what = "finetune: reducers and branches both name a chain to train with"
            raise Mistake(what, "leave reducers=(); a branch may have them")
        heads = [branch.head for branch in self.branches]
        if self.align and 0 in heads[1:] and heads[0] != 0:
            what = f"finetune: branches end in heads {heads}, but head 0 can only teach"
            raise Mistake(what, "put its branch first, or set align=0")
        _ = self.shapes  # refused here if there are none

    @property
    def shapes(self) -> tuple[clips.Shape, ...]:
        """Lengths and sides of which each batch draws one; () where all are those of `clip`."""
        return self.grids.legal(self.model.patch, self.model.tubelet)

    def ways(self) -> tuple[Branch, ...]:
        """Return the branches, also where there is but one."""
        return self.branches or (Branch(reducers=self.reducers),)

    def cases(self) -> Iterator[tuple[clips.Config, tuple[base.Config, ...]]]:
        """Yield every clip that a step may see, with each chain that it then goes through.

        Raises:
            Mistake: a clip is no whole number of tubelets or patches.
        """
        host = self.model.host(self.reducers)
        shown = [clips.shaped(self.clip, shape) for shape in self.shapes] or [self.clip]
        for clip in shown:
            grid = host.grid_of(clip.frames, clip.size, clip.size)
            yield from ((clip, way.chain(grid)) for way in self.ways())

    def check(self) -> None:
        """Refuse what a later step would stumble over, before any work.

        Raises:
            Mistake: a clip does not fit the host, or a chain does not fit the host or a clip.
        """
        host = self.model.host(self.reducers)
        for clip, reducers in self.cases():
            chain = base.chain_of(reducers, host)
            chain.check(chain.grid(host.grid_of(clip.frames, clip.size, clip.size)))


def run(config: Config, clip_set: ClipSet, inputs: Inputs, report: Report) -> Result:
    """Train for `config.steps` steps and return the weights.

    Args:
        config: what to train.
        clip_set: its `train` split is read.
        inputs: `weights` to start from and a `teacher`, if any.
        report: gets the loss and the state after each step.

    Raises:
        Mistake: clips, chains, heads or teacher do not fit the model.
    """
    config.check()
    model = config.model.build(len(clip_set.classes), config.reducers, config.seed)
    if "weights" in inputs:
        adopt(model, _weights(inputs["weights"], clip_set.classes))
    if config.train == "added":
        freeze(model)
    model.to(clip_set.device).train()
    trainer = _Trainer(config, clip_set, model, teacher_of(config.distil, model, inputs))
    trainer.run(report)
    weights = {name: weight.cpu().contiguous() for name, weight in model.state_dict().items()}
    return Result(weights, {**trainer.metrics(), "train/steps": config.steps}, None)


def _weights(source: Input, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights to start from, without a head whose outputs mean something else."""
    weights = load_file(source.weights)
    if isinstance(source.config, load.Config) and not source.config.names(classes):
        weights = {name: w for name, w in weights.items() if not name.startswith("heads.")}
    return weights


def adopt(model: VideoTransformer, weights: dict[str, Tensor]) -> tuple[str, ...]:
    """Load the weights of another stage and return the parts of the model that it does not have.

    What a pre-training has beside the model (its decoder) is left. Only what comes on top of a
    backbone may be missing, or of another size: it keeps the weights that it was built with.

    Raises:
        Mistake: it is another model.
    """
    own = model.state_dict()
    fitting = {
        name: weight
        for name, weight in weights.items()
        if name in own and own[name].shape == weight.shape
    }
    missing = tuple(sorted({*own} - {*fitting}))
    if not all(map(is_added, missing)):
        raise Mistake(
            f"weights: {len(missing)} of the model's {len(own)} tensors are not among them",
            "the stages that pass weights on must have the same model",
        )
    model.load_state_dict(fitting, strict=False)
    return missing


def freeze(model: VideoTransformer) -> None:
    """Leave only what comes on top of the backbone to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_added(name))


class _Trainer(Trainer):
    """Learns the labels of clips, along one or several branches."""

    def __init__(
        self,
        config: Config,
        clip_set: ClipSet,
        model: VideoTransformer,
        teacher: Teacher | None,
    ) -> None:
        super().__init__(config, clip_set, model)
        self.config, self.shapes = config, config.shapes
        branches = Branches(
            model, config.ways(), config.align, config.label_smoothing, config.distil, teacher
        )
        self.forward = self._spread(branches, has_idle=len(model.heads) > 1)

    def _spread(self, branches: Branches, has_idle: bool) -> nn.Module:
        """Let ranks average their gradients; heads that no branch ends in have none."""
        if self.world == 1:
            return branches
        return DistributedDataParallel(branches, find_unused_parameters=has_idle)

    def loss(self, ids: list[int], seeds: list[int]) -> Tensor:
        target_BK = F.one_hot(self.clip_set.labels_of(ids), len(self.clip_set.classes)).float()
        clip_BCTHW, target_BK = self.load(ids, seeds, self._clip(), target_BK)
        with self.autocast():
            loss: Tensor = self.forward(clip_BCTHW, target_BK, seeds)
        return loss

    def _clip(self) -> clips.Config:
        """Return what all clips of the next step show."""
        if not self.shapes:
            return self.config.clip
        shape = clips.draw_shape(self.shapes, self.config.seed, self.done)
        return clips.shaped(self.config.clip, shape)
