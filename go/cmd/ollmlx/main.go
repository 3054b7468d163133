// Command ollmlx is the server and its command line.
package main

import (
	"fmt"

	"github.com/ollmlx/ollmlx/go/internal/version"
)

func main() {
	fmt.Printf("ollmlx version is %s\n", version.Version)
}
