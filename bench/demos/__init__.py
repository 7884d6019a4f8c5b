"""What `bench.demo` shows: labels of road signs, and photographs."""
