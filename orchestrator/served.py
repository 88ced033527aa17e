"""An exported folder as an MLflow model: paths of videos in, a row a video out.

MLflow runs this file when it loads the model ("models from code"): nothing is pickled. It needs
`workloads` alone, which is logged beside it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from workloads.predict import Predictor


class Served(PythonModel):  # type: ignore[misc]  # MLflow's types are not read
    """Labels the videos in the only column of its input; a bad one has an error and no label."""

    def load_context(self, context: Any) -> None:  # Any: MLflow's, with the paths of artifacts
        """Load the model of the folder that was logged."""
        self.predictor = Predictor(context.artifacts["folder"])  # as `registry` names it

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:  # Any: MLflow's
        """Return label, score, logits and error of each video; a list comes as a table, too."""
        answers = list(self.predictor(list(pd.DataFrame(model_input).iloc[:, 0])))
        return pd.DataFrame(
            {
                "label": [answer.label or None for answer in answers],
                "score": [answer.score for answer in answers],
                "logits": [list(answer.logits) for answer in answers],
                "error": [answer.reason for answer in answers],
            }
        )


set_model(Served())
