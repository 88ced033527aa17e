"""An exported folder in MLflow: a pyfunc model of the trial's run, with a signature, no pickle.

    model = mlflow.pyfunc.load_model("models:/m-...")
    model.predict(["one.mp4", "two.mp4"])          # a table: label, score, logits, error

MLflow would look for the experiment in what is set for the whole process, and for what the model
needs by loading it in another one; both are said here.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

import workloads
from orchestrator.environment import hush
from workloads import readers

NEEDED = ("torch", "numpy", "pandas", "pyarrow", "safetensors")


def log(uri: str, parent: str | None, trial: int, folder: Path) -> dict[str, str]:
    """Log a folder and return where: `uri`, `run_id`, `model_uri`.

    Args:
        uri: of MLflow.
        parent: the run of the study; None if MLflow did not answer before.
        trial: whose run below it gets the model.
        folder: what was exported.
    """
    if parent is None:
        raise ConnectionError("it does not answer")
    import mlflow
    from mlflow.models import Model

    hush()
    client = mlflow.MlflowClient(uri)
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`paretoken.parent` = '{parent}' and tags.`paretoken.trial` = '{trial}'"
    found = client.search_runs([experiment], f"{query} and tags.`paretoken.role` = 'trial'")
    run_id = found[0].info.run_id if found else parent
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        place = client.create_logged_model(experiment, f"trial_{trial:03d}", run_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for an example of the input: somebody's video
            made = Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                model_id=place.model_id,
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={"folder": str(folder.resolve())},
                code_paths=[str(Path(workloads.__file__).parent)],
                signature=_signature(),
                pip_requirements=_requirements(),
            )
    finally:
        mlflow.set_tracking_uri(before)
    return {"uri": uri, "run_id": run_id, "model_uri": made.model_uri}


def _signature() -> object:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    columns = {
        "label": DataType.string,
        "score": DataType.double,
        "logits": Array(DataType.double),
        "error": DataType.string,
    }
    answer = Schema([ColSpec(kind, name, required=False) for name, kind in columns.items()])
    return ModelSignature(Schema([ColSpec(DataType.string)]), answer)


def _requirements() -> list[str]:
    """Return what `served` needs: the versions that are here, this build of torch left open."""
    wanted = (*NEEDED, *(readers.MODULES[name] for name in readers.versions()))
    return [f"{name}=={version(name).partition('+')[0]}" for name in wanted]
