"""A study that starts from a model from outside: what `--model` makes of one that trains.

Each training that would start from random weights starts from the checkpoint: the model is the
checkpoint's, clips have its length and side, and everything else is as the study has it. Its head
serves where it names the same classes in the same order; any other is made anew.
"""

from __future__ import annotations

from dataclasses import replace

from search_spaces.fit import Learner, StageConfig
from search_spaces.stage import Stage
from search_spaces.study import Study
from workloads import clips, load, pretrain
from workloads.mistakes import Mistake


def started(study: Study, source: load.Config) -> Study:
    """Return a study whose trainings start from a checkpoint.

    Raises:
        Mistake: none of them has such a model, or a pre-training lacks the decoder.
    """
    first = Stage(kind="load", config=source)
    made: dict[Stage, Stage] = {}
    for stage in study.stages:
        inputs = tuple((role, made[needed]) for role, needed in stage.inputs)
        config = _with(stage.config, source, study)
        if isinstance(config, Learner) and "weights" not in dict(inputs):
            inputs = (("weights", first), *inputs)
        made[stage] = replace(stage, config=config, inputs=inputs)
    return replace(study, stages=(first, *made.values()))


def _with(config: StageConfig, source: load.Config, study: Study) -> StageConfig:
    """Return the config of a stage with the model of a checkpoint and clips that fit it."""
    shown = source.clip
    clip: clips.Config = replace(config.clip, frames=shown.frames, size=shown.size, fit=shown.fit)
    config = replace(config, clip=clip)
    if not isinstance(config, Learner):
        return config
    if type(config.model) is not type(source.model):
        theirs, ours = (one.__module__.rpartition(".")[2] for one in (source.model, config.model))
        what = f"--model: a {theirs}, but {study.name!r} starts from a {ours}"
        raise Mistake(what, "choose a study of that host: paretoken studies")
    config = replace(config, model=source.model)
    if not isinstance(config, pretrain.Config):
        return config
    if source.decoder is None:
        what = f"--model: it has no decoder, and {study.name!r} pre-trains"
        raise Mistake(what, "give a VideoMAEForPreTraining, or a study that only fine-tunes")
    return replace(config, decoder=source.decoder)
