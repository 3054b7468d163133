package runner

func hostMain() {}
