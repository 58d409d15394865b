import sys

from gateway.workers.worker import main

main(int(sys.argv[1]))
