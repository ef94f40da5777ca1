from .tasks import LanguageTask as LanguageTask
from .tasks import SupervisedTask as SupervisedTask
from .token_windows import EpochOrder as EpochOrder
from .token_windows import TokenDataset as TokenDataset
from .token_windows import TokenWindows as TokenWindows
