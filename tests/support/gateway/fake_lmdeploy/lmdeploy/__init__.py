def engine_process() -> None:
    """What the process that LMDeploy spawns for its engine would run on."""
    import asyncio

    loop = asyncio.new_event_loop()
    print("engine process: loop", type(loop).__module__, flush=True)
    loop.close()
