"""What tests of several folders share: real servers and wires that misbehave, clients that do, books and documents."""
