"""Learning from feedback: labels are ingested, routes refitted, snapshots stored and served.

    labels since the cursor -> OnlineRegression, ThompsonSampler -> saved with the cursor
    enough new labels       -> refit -> artifact -> snapshot -> promoted if learning is on
    another generation      -> every worker loads the current snapshot and serves it

The entry point is `worker.LearningWorker`. Nothing is imported here, because the refit process
imports this package and needs only the regression.
"""
