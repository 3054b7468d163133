package server

import (
	"os"
	"path"
	"regexp"
	"strings"
)

// machinePath finds absolute paths: what follows a blank, a quote or the like and has two parts or more.
var machinePath = regexp.MustCompile(`(?:^|[\s"'` + "`" + `(=:\[])(?:/[^/\s"'` + "`" + `():,;\[\]]+){2,}`)

// publicText is what a client hears of an error. Of paths of this machine only the last part is left, which tells the
// owner of the machine enough and others nothing: an error may quote the log of a runner, or come from a library.
func publicText(err error) string {
	return machinePath.ReplaceAllStringFunc(err.Error(), func(found string) string {
		at := strings.IndexByte(found, '/')
		first, _, _ := strings.Cut(found[at+1:], "/")
		// A route, or what else looks like a path, is none of this machine.
		if _, err := os.Stat("/" + first); err != nil {
			return found
		}
		return found[:at] + path.Base(found[at:])
	})
}
