// A vCenter to test against: govmomi's simulator with disks that are files and changes that are tracked.
//
// It listens on 127.0.0.1 without TLS: the fault proxy of the tests stands before it and speaks TLS. The first line on
// stdout is its port. It ends when its stdin does, so that it cannot outlive the test that started it.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	root := flag.String("root", "", "folder for disks and control files")
	esx := flag.Bool("esx", false, "be a bare host")
	flag.Parse()
	if *root == "" {
		log.Fatal("-root is missing")
	}
	log.SetOutput(os.Stderr)

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = 0
	model.Datastore = 2
	model.Pool = 0
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	defer model.Remove()
	simulator.TrackChanges(*root)
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword("backup@vsphere.local", "p&ss<word>")}
	server := model.Service.NewServer()
	fmt.Println(server.URL.Port())
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
}
