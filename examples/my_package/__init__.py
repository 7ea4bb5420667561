"""A package of one's own beside gnnrec: a model, a loss, a sampler and a reader that configs name by import path.

GNNREC_EXTENSIONS=my_package PYTHONPATH=examples gnnrec train model=custom model.path=my_package.models:OneHop \
    "model.options={dim: 32}" loss=custom loss.path=my_package.losses:Hinge
"""
