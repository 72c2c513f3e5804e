from asymrec.cli import main

main()
