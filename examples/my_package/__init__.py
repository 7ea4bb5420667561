"""A package of one's own beside gnnrec: model, loss, sampler, reader and tier that configs name by import path.

GNNREC_EXTENSIONS=my_package PYTHONPATH=examples gnnrec train model=custom model.path=my_package.models:OneHop \
    "model.options={dim: 32}" loss=custom loss.path=my_package.losses:Hinge
"""
