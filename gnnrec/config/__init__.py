"""What a run can be told: one dataclass a section, filled from the composed Hydra config and checked.

The YAML files in `conf/` hold the values, the dataclasses the types and the rules. A message names the field, its value
and the remedy.
"""

from gnnrec.config.calibrate import CalibrateConfig
from gnnrec.config.checks import did_you_mean
from gnnrec.config.data import ColumnsConfig, DataConfig, SplitConfig, SyntheticConfig
from gnnrec.config.distributed import DistributedConfig, check_rank_device, check_ranks
from gnnrec.config.hardware import HardwareConfig
from gnnrec.config.loss import (
    LOSSES,
    BPRConfig,
    CustomLossConfig,
    DirectAUConfig,
    LossConfig,
    SoftmaxConfig,
    SquaredConfig,
)
from gnnrec.config.memory import MemoryConfig, SimulateConfig
from gnnrec.config.model import (
    MODELS,
    CustomModelConfig,
    GFCFConfig,
    LightGCNConfig,
    ModelConfig,
    NGCFConfig,
    SimGCLConfig,
    XSimGCLConfig,
)
from gnnrec.config.plan import PlanConfig
from gnnrec.config.tiers import TiersConfig
from gnnrec.config.train import BESIDE, GeneralConfig, TrainConfig, to_yaml
from gnnrec.config.training import EvaluationConfig, OptimizerConfig, TrainerConfig
from gnnrec.config.values import fill, from_yaml
from gnnrec.config.verbs import CatalogConfig, EvaluateConfig, RecommendConfig, ReportConfig, TuneConfig

__all__ = [
    "BESIDE",
    "LOSSES",
    "MODELS",
    "BPRConfig",
    "CalibrateConfig",
    "CatalogConfig",
    "ColumnsConfig",
    "CustomLossConfig",
    "CustomModelConfig",
    "DataConfig",
    "DirectAUConfig",
    "DistributedConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "GFCFConfig",
    "GeneralConfig",
    "HardwareConfig",
    "LightGCNConfig",
    "LossConfig",
    "MemoryConfig",
    "ModelConfig",
    "NGCFConfig",
    "OptimizerConfig",
    "PlanConfig",
    "RecommendConfig",
    "ReportConfig",
    "SimGCLConfig",
    "SimulateConfig",
    "SoftmaxConfig",
    "SplitConfig",
    "SquaredConfig",
    "SyntheticConfig",
    "TiersConfig",
    "TrainConfig",
    "TrainerConfig",
    "TuneConfig",
    "XSimGCLConfig",
    "check_rank_device",
    "check_ranks",
    "did_you_mean",
    "fill",
    "from_yaml",
    "to_yaml",
]
