"""What a shared gradient or a federated update shows of the examples behind it, dropout included."""

from attacks.gradient_inversion.analytic import analytic_linear_inversion
from attacks.gradient_inversion.audit import DropoutInversionConfig, dropout_inversion_audit
from attacks.gradient_inversion.clients import ClientMemory, share
from attacks.gradient_inversion.dlg import deep_leakage
from attacks.gradient_inversion.dropout_inversion import dropout_inversion
from attacks.gradient_inversion.engine import InversionConfig, Inverted
from attacks.gradient_inversion.instrument import Instrumented, instrument_dropout
from attacks.gradient_inversion.inverting_gradients import IG_CONFIG, inverting_gradients
from attacks.gradient_inversion.labels import recover_labels
from attacks.gradient_inversion.maskable import MaskableDropout
from attacks.gradient_inversion.objective import LocalTraining, Update, shared_update
from attacks.gradient_inversion.quality import matched, mse, psnr, ssim
from attacks.gradient_inversion.stale import StaleConfig, invert_update, unstale
from attacks.gradient_inversion.well_informed import well_informed

__all__ = [
    "IG_CONFIG",
    "ClientMemory",
    "DropoutInversionConfig",
    "Instrumented",
    "InversionConfig",
    "Inverted",
    "LocalTraining",
    "MaskableDropout",
    "StaleConfig",
    "Update",
    "analytic_linear_inversion",
    "deep_leakage",
    "dropout_inversion",
    "dropout_inversion_audit",
    "instrument_dropout",
    "invert_update",
    "inverting_gradients",
    "matched",
    "mse",
    "psnr",
    "recover_labels",
    "share",
    "shared_update",
    "ssim",
    "unstale",
    "well_informed",
]
