"""What `stylemamba` exports, for type checkers and editors, which do not run the `__getattr__` of `__init__.py`."""

from .pipeline.fusion import StyleFusion as StyleFusion
from .pipeline.image_guided_pipeline import MambaSTPipeline as MambaSTPipeline
from .pipeline.image_guided_pipeline import SaMamPipeline as SaMamPipeline
from .pipeline.losses import alpha_shift as alpha_shift
from .pipeline.losses import content_loss as content_loss
from .pipeline.losses import directional_loss as directional_loss
from .pipeline.losses import masked_directional_loss as masked_directional_loss
from .pipeline.losses import mean_std_loss as mean_std_loss
from .pipeline.losses import patch_mask as patch_mask
from .pipeline.losses import second_order_loss as second_order_loss
from .pipeline.losses import style_loss as style_loss
from .pipeline.losses import total_variation as total_variation
from .pipeline.mamba_st import MambaST as MambaST
from .pipeline.metrics import score as score
from .pipeline.perceptual import VGGFeatures as VGGFeatures
from .pipeline.pipeline_stylemamba import StyleMambaPipeline as StyleMambaPipeline
from .pipeline.pipeline_stylemamba import StyleMambaPipelineOutput as StyleMambaPipelineOutput
from .pipeline.presets import preset as preset
from .pipeline.prompt_fit import FitProgress as FitProgress
from .pipeline.prompt_fit import PromptFitConfig as PromptFitConfig
from .pipeline.regions import Region as Region
from .pipeline.regions import stylize_regions as stylize_regions
from .pipeline.samam import SaMam as SaMam
from .pipeline.scan_orders import scan_orders as scan_orders
from .pipeline.selective_scan import scan_backends as scan_backends
from .pipeline.selective_scan import selective_scan as selective_scan
from .pipeline.selective_scan import selective_scan_ref as selective_scan_ref
from .pipeline.siglip_encoder import SiglipEncoder as SiglipEncoder
from .pipeline.style import Style as Style

__version__: str
