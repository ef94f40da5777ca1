from .multiple_choice import MultipleChoice as MultipleChoice
from .multiple_choice import Question as Question
from .multiple_choice import read_multiple_choice as read_multiple_choice
from .tasks import LanguageTask as LanguageTask
from .tasks import SupervisedTask as SupervisedTask
from .token_windows import EpochOrder as EpochOrder
from .token_windows import TokenDataset as TokenDataset
from .token_windows import TokenWindows as TokenWindows
