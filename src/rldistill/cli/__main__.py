from rldistill.cli import main

main()
