"""The only modules that import DVC, MLflow, Prefect and Great Expectations."""
