// The browser of the tests.

import { chromium } from 'playwright-core';

/**
 * Starts Chromium without the sandbox: a container may lack the rights for it, and only the own
 * page is opened.
 */
export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
  });
