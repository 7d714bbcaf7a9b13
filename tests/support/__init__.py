"""What tests stand on: real servers on real sockets, started and stopped for one test."""
