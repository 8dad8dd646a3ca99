"""Networks of one resolution by name. Adding one: a file with a configuration section, and its line below."""

from ditkit.backbones.sections.base import BackboneSection
from ditkit.backbones.sections.dit import DIT_SIZES, SIT_SIZES, DiTConfig
from ditkit.backbones.sections.mdm import MDM_64, MDMConfig
from ditkit.backbones.sections.udit import UDIT_SIZES, UDiTConfig
from ditkit.backbones.sections.unet import UNetConfig

PLAIN: dict[str, BackboneSection] = {
    "DiT": DiTConfig(),
    **DIT_SIZES,
    **SIT_SIZES,
    "U-DiT": UDiTConfig(),
    **UDIT_SIZES,
    "UNet": UNetConfig(),
    "MDM": MDMConfig(),
    "MDM-64": MDM_64,
}
