import os

# Before ray is imported anywhere: on 127.0.0.1 it would take a cluster for a Windows one and wait for ever.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
