from gateway.embedded.server import main

if __name__ == "__main__":
    main()
