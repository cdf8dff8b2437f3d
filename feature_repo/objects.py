"""What Feast's own command line collects: the definitions as module-level names, for the home in OMNIFEED_HOME.

`OMNIFEED_HOME=... feast -c feature_repo -f feature_repo/sqlite/feature_store.yaml apply` registers the same objects as
the materialize step.
"""

from omnifeed.feature_repo.definitions import definitions
from omnifeed.home import Home

globals().update({registered.name: registered for registered in definitions(Home.from_env().root)})
