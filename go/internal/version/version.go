// Package version holds what the build stamped into the program.
//
// scripts/hatch_build.py sets both variables through the linker; a plain `go build` leaves the
// defaults, which no release ever shows.
package version

// Version is the version of the Python package that the program was built for.
var Version = "0.0.0-dev"

// Commit is the commit that the program was built from, or "unknown".
var Commit = "unknown"

// OllamaAPI is the release of Ollama whose API the server follows. /api/version reports it, because clients
// and models demand a minimum of it.
const OllamaAPI = "0.33.0"
