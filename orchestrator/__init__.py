"""Ray, Optuna and MLflow: runs a study from its stages to its front."""
