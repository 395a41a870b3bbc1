from ponder.cli.main import run

run()
