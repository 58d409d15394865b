from gateway.embedded.cli import main

if __name__ == "__main__":
    main()
