package sched

// Instance is the runner behind the measured one.
func (l *Lease) Instance() Instance { return l.instance }
