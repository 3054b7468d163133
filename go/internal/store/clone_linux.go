package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// clone makes a file that shares its content with another until one of them is written to, where the file system can.
func clone(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err != nil {
		os.Remove(to)
		return err
	}
	return nil
}
